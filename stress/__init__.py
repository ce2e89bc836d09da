"""Campaigns against the installed package: what breaks where nobody looked.

    calls      random layers, valid and hostile calls: right by the reference, or a clear error that changes nothing
    files      mutations of every format that is read: an error within a second and within bounded memory, or a load
    kills      SIGKILL and full disks during every kind of save: the old file or the new one, whole
    signals    Ctrl-C at random moments: nothing hangs, and what comes after is right
    threads    many callers, streams and forks, workers that come each time: the bits of one thread
    memory     resident memory over many calls; an allocator that fails at the n-th allocation

Each is a command with a time limit and a seed that it prints, `python -m stress.calls --seconds 60 --seed 7`; see
`campaign`, which all of them go through. The ordinary tests run each for a few seconds (tests/test_stress.py), and
docs/reliability.md says what longer runs have shown.
"""
