"""A picture of a plan: memory over the step, one curve a row."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from hpff.memory.planning import Plan


def draw(plan: Plan, kind: str) -> bytes:
    """The picture as a file of this kind: png, svg or pdf.

    A step's curve runs from its first to its last allocation or release: the axis is the order
    of events, not time.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for row in plan.rows:
        if row.peak is None:
            continue
        events = max(len(row.curve) - 1, 1)
        share = [100 * i / events for i in range(len(row.curve))]
        axes.plot(share, [size / 2**30 for size in row.curve], label=str(row.strategy), linewidth=1)
    if plan.budget is not None:
        axes.axhline(plan.budget / 2**30, color="black", linestyle=":", label="budget")
    name = plan.workload.model if isinstance(plan.workload.model, str) else "model"
    axes.set(
        title=f"{name}, {len(plan.partition)} modules, batch {plan.batch}",
        xlabel="allocations and releases of a step, %",
        ylabel="memory, GiB",
        xlim=(0, 100),
    )
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=150)
    return file.getvalue()
