"""The picture: how long each contender takes against fastrnn, a panel for each kind of work.

python benchmarks/plot.py results.json picture.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_MARKS = {
    "reference": ("NumPy reference", "x", "#7f7f7f"),
    "torch": ("torch", "o", "#d6452b"),
    "torch packed": ("torch, packed", "o", "#d6452b"),
    "torch padded": ("torch, padded", "P", "#8c2d1b"),
    "onnxruntime": ("onnxruntime", "s", "#3b6fb6"),
    "openvino": ("OpenVINO", "D", "#7a4fa3"),
    "jax": ("JAX", "^", "#2e9e6b"),
    "jax masked": ("JAX, masked", "^", "#2e9e6b"),
    "fastrnn full batch": ("fastrnn, full batch", "|", "#111111"),
    "fastrnn one thread": ("fastrnn, one thread", "1", "#111111"),
    "ceiling": ("ceiling", "|", "#e0a000"),
}


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the rows of a results file that have a time of fastrnn; right of the line is slower than fastrnn."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in results["rows"] if "fastrnn" in row["microseconds"]]
    if not rows:
        raise ValueError("expected results with times of fastrnn, got none")
    kinds = {kind: [r for r in rows if r["kind"] == kind] for kind in dict.fromkeys(row["kind"] for row in rows)}
    figure, panels = plt.subplots(
        len(kinds),
        figsize=(9, 2.2 + 0.26 * len(rows) + 0.5 * len(kinds)),
        gridspec_kw={"height_ratios": [len(k) + 1.5 for k in kinds.values()]},
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for (kind, of_kind), panel in zip(kinds.items(), panels[:, 0], strict=True):
        _draw_panel(panel, kind, of_kind)
    _draw_axis(panels[:, 0], [time for row in rows for time in _times(row).values()])
    handles = {
        label: mark for panel in panels[:, 0] for mark, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    about = results["machine"]
    figure.suptitle(
        f"Time against fastrnn, {about['dtype']}, {about['threads']} thread{'s' if about['threads'] > 1 else ''}\n"
        f"{about['cpu']}, {about['instruction_set']}",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_panel(panel: Any, kind: str, rows: list[dict[str, Any]]) -> None:
    """One line a row of the table, time of each contender over fastrnn's on a logarithmic axis."""
    for name, (label, marker, colour) in _MARKS.items():
        points = [(_times(row)[name], y) for y, row in enumerate(rows) if name in _times(row)]
        if points:
            x, y = zip(*points, strict=True)
            panel.scatter(x, y, marker=marker, color=colour, label=label, s=38, zorder=3, clip_on=False)
    panel.set_yticks(range(len(rows)), [f"{row['cell']} {row['shape']}" for row in rows], fontsize=8)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title(f"{kind} (left of the line: faster than fastrnn)", fontsize=9, loc="left")
    panel.tick_params(axis="x", labelsize=8, labelbottom=True)


def _draw_axis(panels: Any, times: list[float]) -> None:
    """The logarithmic axis that all panels share; the side on which fastrnn loses is shaded."""
    from matplotlib import ticker

    low, high = min(*times, 0.8) / 1.2, max(*times, 1.25) * 1.2
    for panel in panels:
        panel.axvline(1, color="black", linewidth=1.2)
        panel.axvspan(low, 1, color="#d6452b", alpha=0.06, linewidth=0)
    axis = panels[0].xaxis
    panels[0].set(xscale="log", xlim=(low, high))
    axis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _times(row: dict[str, Any]) -> dict[str, float]:
    """Times over fastrnn's, by contender."""
    ours = row["microseconds"]["fastrnn"]
    times = {name: time / ours for name, time in row["microseconds"].items() if name != "fastrnn"}
    return times | {"ceiling": row["ceiling_microseconds"] / ours}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
