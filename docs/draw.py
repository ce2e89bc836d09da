"""Draws the pictures of this folder, as SVG and with nothing but Python: python docs/draw.py

unrolled.svg    the RNN unrolled over three time steps, what flows forward and what flows back
panels.svg      how W_hh is packed, and the tile of one time step
"""

from __future__ import annotations

from pathlib import Path

INK, GREY, RED = "#1f2933", "#8a94a0", "#c0392b"
GATES = ("#cfe3f7", "#fbe3c5", "#d5efd8")  # r, z, n
STRONG = ("#6aa8e0", "#efae57", "#74c284")


class Picture:
    def __init__(self, width: int, height: int) -> None:
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="Helvetica, Arial, sans-serif" font-size="14">'
        )
        self.parts = [f'<rect width="{width}" height="{height}" fill="white"/>']
        for name, colour in (("ink", INK), ("red", RED), ("grey", GREY)):
            self.parts.append(
                f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
                f'orient="auto">'
                f'<path d="M0 0 L8 4 L0 8 z" fill="{colour}"/></marker>'
            )

    def box(self, x: float, y: float, w: float, h: float, fill: str = "white", round: float = 0) -> None:
        self.parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{round}" fill="{fill}" stroke="{INK}"/>')

    def text(self, x: float, y: float, text: str, colour: str = INK, anchor: str = "middle", size: int = 14) -> None:
        self.parts.append(
            f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}" font-size="{size}">{text}</text>'
        )

    def arrow(self, path: str, kind: str = "ink") -> None:
        colour = {"ink": INK, "red": RED, "grey": GREY}[kind]
        dashes = ' stroke-dasharray="5 4"' if kind == "red" else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes} marker-end="url(#{kind})"/>'
        )

    def save(self, name: str) -> None:
        lines = [self.head, *self.parts, "</svg>"]
        (Path(__file__).parent / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def unrolled() -> None:
    """Each column is a time step: x below, h in the middle, o above it, the loss on top."""
    p = Picture(820, 430)
    for i, step in enumerate(("t-1", "t", "t+1")):
        x = 150 + 220 * i
        for y, name in ((340, "x"), (220, "h"), (120, "o")):
            p.box(x, y, 76, 36, {"x": "#eef1f4", "h": GATES[0], "o": GATES[1]}[name], round=6)
            p.text(x + 38, y + 23, f"{name}({step})")
        p.box(x, 30, 76, 36, GATES[2], round=6)
        p.text(x + 38, 53, f"L({step})")
        p.arrow(f"M{x + 28} 340 L{x + 28} 258")
        p.text(x + 18, 304, "U")
        p.arrow(f"M{x + 28} 220 L{x + 28} 158")
        p.text(x + 18, 194, "V")
        p.arrow(f"M{x + 28} 120 L{x + 28} 68")
        p.text(x + 22, 99, "softmax, y", anchor="end", size=12)
        p.arrow(f"M{x + 50} 66 L{x + 50} 118", "red")
        p.arrow(f"M{x + 50} 156 L{x + 50} 218", "red")
        p.arrow(f"M{x + 50} 256 L{x + 50} 338", "red")
    for x in (6, 226, 446, 666):
        p.arrow(f"M{x} 230 L{x + 142} 230")
        p.text(x + 72, 222, "W")
        p.arrow(f"M{x + 142} 247 L{x + 2} 247", "red")
        p.text(x + 72, 266, "Wᵀ", RED)
    p.arrow("M150 408 L190 408")
    p.text(198, 413, "forward", anchor="start")
    p.arrow("M330 408 L290 408", "red")
    p.text(340, 413, "gradient, in the opposite order: back-propagation through time", RED, "start")
    p.save("unrolled.svg")


def panels() -> None:
    """Left: W_hh of a GRU as torch stores it.  Middle: one panel.  Right: a tile of the batch."""
    p = Picture(900, 430)
    H, cut, width = 96, 24, 130
    p.text(30 + width / 2, 28, "weight_hh (3H, H)")
    for g, name in enumerate("rzn"):
        p.box(30, 44 + g * H, width, H, GATES[g])
        p.box(30, 44 + g * H + cut, width, cut, STRONG[g])
        p.text(20, 44 + g * H + H / 2 + 5, name)
    p.text(30 + width / 2, 352, "H columns: k", size=12)
    p.text(30 + width / 2, 374, "dark: the rows of the same", GREY, size=12)
    p.text(30 + width / 2, 390, "few units in every gate", GREY, size=12)
    p.arrow("M170 188 L232 188", "grey")
    p.text(201, 178, "pack", GREY, size=12)

    left, cell = 250, 66
    p.text(left + 1.5 * cell, 28, "one panel (H, 3, units)")
    for k in range(7):
        y = 44 + k * 26
        for g, name in enumerate("rzn"):
            p.box(left + g * cell, y, cell, 26, STRONG[g] if k < 6 else GATES[g])
            p.text(left + (g + 0.5) * cell, y + 18, f"{name}, k={k}" if k < 6 else "...", size=12)
    p.arrow(f"M{left - 8} 52 L{left - 8} 214", "grey")
    p.text(left + 1.5 * cell, 248, "read once from top to bottom,", GREY, size=12)
    p.text(left + 1.5 * cell, 264, "contiguous in memory", GREY, size=12)

    left, cell = 560, 66
    p.text(left + 1.5 * cell, 28, "one tile: some rows of the batch, one panel")
    for r in range(4):
        y = 44 + r * 36
        p.text(left - 10, y + 23, f"h(t-1) row {r}", anchor="end", size=12)
        for g, name in enumerate("rzn"):
            p.box(left + g * cell, y, cell, 36, GATES[g])
            p.text(left + (g + 0.5) * cell, y + 23, f"acc {name}", size=12)
    p.text(left + 1.5 * cell, 208, "each a vector register while k runs:", size=12)
    p.text(left + 1.5 * cell, 226, "acc[row] += h(t-1)[row, k] · panel[k]", size=13)
    p.arrow(f"M{left + 1.5 * cell} 240 L{left + 1.5 * cell} 284")
    p.text(left + 1.5 * cell + 10, 267, "bias and x(t) are in acc already", GREY, "start", 12)
    p.box(left - 50, 290, 3 * cell + 100, 62, "#eef1f4", round=6)
    p.text(left + 1.5 * cell, 315, "sigmoid, tanh, h = (1-z) n + z h(t-1)")
    p.text(left + 1.5 * cell, 338, "for these rows and units")
    p.arrow(f"M{left + 1.5 * cell} 352 L{left + 1.5 * cell} 396")
    p.text(left + 1.5 * cell, 415, "h(t) goes to y, the gates to the tape: nothing is written twice", size=12)
    p.save("panels.svg")


if __name__ == "__main__":
    unrolled()
    panels()
