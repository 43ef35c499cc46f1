"""What `bench_students` found, of all seeds: a table in Markdown, and quality against bytes as a picture.

    python -m benches.plot_students --folder WORK --runs 110 2000-decay --picture benches/results/students.svg

Needs matplotlib (extra `plots`). Shares are of the way from cross-entropy to full distillation online, in
held-out KL to the teacher: mean over seeds, with extremes.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from benches.bench_students import ALL, SEQUENCES, file_name
from benches.distillation import HARD, ONLINE, T

matplotlib.use("svg")
import matplotlib.pyplot as plt

FAMILIES = {
    "threshold sampling": ("sampled 1/8", "sampled 1/16", "sampled 1/25", "sampled 1/50", "sampled 1/85"),
    "RS-KD, in our codec": ("RS-KD 50",),
    "top-k, tail bucket": ("top-12 tail", "top-64 tail"),
    "top-k, renormalised": ("top-12 renormalised", "top-64 renormalised"),
}
MARKS = ("o", "D", "s", "^")
INK, GRID = "#24292f", "#d0d7de"
COLOURS = ("#0969da", "#8250df", "#bc4c00", "#9a6700")
COLUMNS = ("KL", "cross-entropy", "top-1 agreement", "calibration error", "acceptance")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="that of bench_students")
    parser.add_argument("--student", default="tiny")
    parser.add_argument("--warm-steps", type=int, default=300)
    parser.add_argument(
        "--runs", nargs="+", default=["110"], help="as 2000-batch16-decay; a panel of the picture each"
    )
    parser.add_argument("--picture", type=Path, help=".svg")
    args = parser.parse_args()
    bytes_of: dict[str, float] = json.loads((args.folder / "bytes.json").read_bytes())
    found = {}
    for run in args.runs:
        steps = int(run.split("-")[0])
        folders = sorted(args.folder.glob(f"{args.student}-{args.warm_steps}-{run}-seed*"))
        found[run] = [scores for folder in folders if ONLINE in (scores := _scores(folder, steps))]
        print(f"{_title(run, len(found[run]))}\n")
        print("\n".join(_table(found[run], bytes_of)) + "\n")
    if args.picture:
        _draw(found, bytes_of, args.picture)


def _scores(folder: Path, steps: int) -> dict[str, dict[str, float]]:
    """Of each way that has come to its end, with its share."""
    found: dict[str, dict[str, float]] = {}
    for way in ALL:
        file = folder / file_name(way, ".json")
        last = json.loads(file.read_bytes())[-1] if file.is_file() else {}
        if last.get("step") == steps:
            found[way] = last
    if HARD in found and ONLINE in found:
        hard, full = found[HARD]["all KL"], found[ONLINE]["all KL"]
        for scores in found.values():
            scores["share"] = (hard - scores["all KL"]) / (hard - full)
    return found


def _table(seeds: Sequence[dict[str, dict[str, float]]], bytes_of: dict[str, float]) -> list[str]:
    lines = [
        "| learned from | bytes a row | share of the way | " + " | ".join(COLUMNS) + " |",
        "|---|---:|---:|" + "---:|" * len(COLUMNS),
    ]
    for way, how in ALL.items():
        of_way = [each[way] for each in seeds if way in each]
        if not of_way:
            continue
        size = f"{bytes_of[how.kind]:.1f}" if how.kind in bytes_of else ""
        shares = [100 * each["share"] for each in of_way]
        share = f"{_mean(shares):.1f} % ({min(shares):.1f} to {max(shares):.1f})"
        cells = [f"{_mean([each[f'all {name}'] for each in of_way]):.4f}" for name in COLUMNS]
        lines.append(f"| {way} | {size} | {share} | " + " | ".join(cells) + " |")
    return lines


def _title(run: str, num_seeds: int) -> str:
    """Of a run by its name, such as 2000-batch16-decay."""
    steps, *others = run.split("-")
    sequences = next((int(each[5:]) for each in others if each.startswith("batch")), SEQUENCES)
    seeds = f"{num_seeds} seed{'s' if num_seeds > 1 else ''}"
    return f"{int(steps):,} steps of {sequences * (T - 1):,} tokens, {seeds}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _draw(
    found: dict[str, list[dict[str, dict[str, float]]]], bytes_of: dict[str, float], picture: Path
) -> None:
    """Share against bytes, a panel for each length of training."""
    plt.rcParams |= {"font.size": 9, "text.color": INK, "axes.edgecolor": GRID, "axes.labelcolor": INK}
    figure, panels = plt.subplots(
        1, len(found), figsize=(4.2 * len(found), 3.6), sharex=True, sharey=True, squeeze=False
    )
    for panel, (run, seeds) in zip(panels[0], found.items(), strict=True):
        for (family, ways), mark, colour in zip(FAMILIES.items(), MARKS, COLOURS, strict=True):
            known = [way for way in ways if all(way in each for each in seeds)]
            if not known:
                continue
            sizes = [bytes_of[ALL[way].kind or ""] for way in known]
            shares = [[100 * each[way]["share"] for each in seeds] for way in known]
            means = [_mean(each) for each in shares]
            spread = [
                [m - min(each) for m, each in zip(means, shares, strict=True)],
                [max(each) - m for m, each in zip(means, shares, strict=True)],
            ]
            panel.errorbar(
                sizes, means, yerr=spread, label=family, color=colour, marker=mark, capsize=2, lw=1.2, ms=5
            )
        panel.axhline(100, color=INK, lw=0.8, ls=":")
        panel.set_xscale("log")
        ticks = (8, 16, 32, 64)
        panel.set_xlim(7, 128)
        panel.set_xticks(ticks, [str(each) for each in ticks])
        panel.minorticks_off()
        panel.grid(color=GRID, lw=0.5)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        panel.tick_params(color=GRID, labelcolor=INK)
        panel.set_title(_title(run, len(seeds)), fontsize=9)
        panel.set_xlabel("bytes a token on disk")
    panels[0][0].set_ylabel("share of the way to full distillation, %")
    panels[0][0].legend(frameon=False, loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
