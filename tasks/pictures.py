"""Pictures of a stage: one figure drawn over its iterations, as PNG bytes."""

import io
from collections.abc import Sequence


def curve_png(points: Sequence[tuple[int, float]], *, title: str, figure: str, over: str = "iteration") -> bytes:
    """A line over iterations or steps (x) of one figure (y) such as loss or reward, with a running mean for many
    points.

    Returns a PNG of about 30 kB; imports matplotlib only here, because flow modules must stay light.
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(7, 3.2), dpi=100, layout="tight")
    axes = picture.add_subplot()
    steps, values = [step for step, _ in points], [value for _, value in points]
    window = max(1, len(values) // 20)
    axes.plot(steps, values, color="#94a3b8" if window > 1 else "#2563eb", linewidth=1, label=figure)
    if window > 1:
        means = [
            sum(values[max(0, i - window + 1) : i + 1]) / (i + 1 - max(0, i - window + 1)) for i in range(len(values))
        ]
        axes.plot(steps, means, color="#2563eb", linewidth=2, label=f"mean of {window}")
        axes.legend(frameon=False)
    axes.set(title=title, xlabel=over, ylabel=figure)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png")
    return buffer.getvalue()
