"""docs/calibration.md: in go the runs' results, out comes the page. No figure stands in it that no run gave."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunewright.recipe import VerifyKeys
from tunewright.verify.limits import SERVED, gguf_limits

Result = dict[str, Any]
LIMITS = VerifyKeys()
Q8_0 = gguf_limits(LIMITS, "q8_0")
CHANCE, NEAR_TIES = ", less chance", ", less near ties and chance"
FIXED = "fixed by the project's issues"
CHOSEN = "chosen, and held against these runs"


@dataclass(frozen=True)
class Gate:
    """A figure with a limit.

    Attributes:
        name: of the evidence.
        limit: what it is held against.
        at_least: whether more of it is better.
        damaged_as: the figure of damaged weights that is held against it.
        origin: where the limit comes from.
        allowance: what may be taken from the limit.
    """

    name: str
    limit: float
    at_least: bool
    damaged_as: str
    origin: str
    allowance: str = ""

    def worst(self, values: list[float]) -> float:
        return min(values) if self.at_least else max(values)

    def best(self, values: list[float]) -> float:
        return max(values) if self.at_least else min(values)


GATES = (
    Gate("adapter_top1_agreement", 1.0, True, "merged_top1_agreement", FIXED),
    Gate("adapter_mean_kl", LIMITS.adapter_kl_limit, False, "merged_mean_kl", FIXED),
    Gate("merged_in_float32_top1_agreement", 1.0, True, "merged_top1_agreement", FIXED),
    Gate("merged_in_float32_mean_kl", LIMITS.adapter_kl_limit, False, "merged_mean_kl", FIXED),
    Gate("merged_top1_agreement", LIMITS.merged_top1_limit, True, "merged_top1_agreement", FIXED, NEAR_TIES),
    Gate("merged_mean_kl", LIMITS.merged_kl_limit, False, "merged_mean_kl", FIXED),
    Gate("q8_0_top1_agreement", Q8_0["top1_agreement"], True, "q8_0_top1_agreement", FIXED, NEAR_TIES),
    Gate("q8_0_clear_top1_agreement", Q8_0["clear_top1_agreement"], True, "q8_0_clear_top1_agreement", CHOSEN, CHANCE),
    Gate("q8_0_mean_kl", Q8_0["mean_kl"], False, "q8_0_mean_kl", FIXED),
    Gate(
        "endpoint_clear_top1_agreement",
        SERVED["clear_top1_agreement"],
        True,
        "endpoint_clear_top1_agreement",
        CHOSEN,
        CHANCE,
    ),
    Gate("endpoint_top1_agreement", SERVED["top1_agreement"], True, "endpoint_top1_agreement", CHOSEN, CHANCE),
    Gate("endpoint_mean_kl", Q8_0["mean_kl"], False, "endpoint_mean_kl", CHOSEN),
)
OTHER_FORMATS = ("f16", "bf16", "q6_k", "q5_k_m", "q4_k_m")


def page(results: list[Result]) -> str:
    parts = [
        *head(results),
        *gates(results),
        *damages(results),
        *other_formats(results),
        *named(results),
        *runs(results),
    ]
    return "\n\n".join(parts) + "\n"


def head(results: list[Result]) -> list[str]:
    alarms = [f"- run {result['index']}: {alarm}" for result in results for alarm in result["alarms"]]
    said = f"Clean runs with a false alarm: {sum(bool(result['alarms']) for result in results)} of {len(results)}."
    checks = sum(result["checks"] for result in results)
    return [
        "# Calibration of the limits of `verify`",
        f"Made by `python benchmarks/calibration.py`, from {len(results)} runs that came to their end. Each goes from "
        "rows to the report over a tiny random base of its own; what is special about it stands at the end. Its "
        "weights are then damaged and every figure that has a limit is taken again.",
        f"{said} They made {checks} checks." + ("\n\n" + "\n".join(alarms) if alarms else ""),
    ]


def gates(results: list[Result]) -> Iterator[str]:
    yield "## Gates with a limit"
    yield (
        "The worst value of a clean run and the best one of a damaged run: a limit that stands between them tells all "
        "of them apart by itself. Where it does not, it says how many damaged ones it lets pass; those are found by "
        "another gate (next table), or by the comparison of the files, tensor by tensor, which allows for nothing. "
        "From a limit of a share is taken what chance explains over the run's positions, and where it is said, what "
        "the measured KL does to near ties (`verify/limits.py`, decisions [011](decisions/011-chance-in-limits.md) and "
        f"[012](decisions/012-near-ties.md)); these runs have {positions_of(results)} positions."
    )
    rows = [row for gate in GATES if (row := gate_row(gate, results))]
    titles = ["gate", "limit", "worst clean", "runs", "best damaged", "damaged", "passed by it alone", "the limit is"]
    yield table(titles, rows)


def positions_of(results: list[Result]) -> str:
    counts = [result["positions"] for result in results]
    return f"{min(counts)} to {max(counts)}" if counts else "no"


def gate_row(gate: Gate, results: list[Result]) -> list[str]:
    clean = [result["clean"][gate.name] for result in results if gate.name in result["clean"]]
    of_runs = [figures for result in results for figures in result["damaged"].values() if gate.damaged_as in figures]
    if not clean:
        return []
    missed = sum(gate.name not in figures["failed"] for figures in of_runs)
    damaged = [figures[gate.damaged_as] for figures in of_runs]
    limit = f"{'≥' if gate.at_least else '≤'} {gate.limit:g}{gate.allowance}"
    best = f"{gate.best(damaged):.3g}" if damaged else "none"
    counts = [str(len(clean)), best, str(len(damaged)), str(missed)]
    return [f"`{gate.name}`", limit, f"{gate.worst(clean):.3g}", *counts, gate.origin]


def damages(results: list[Result]) -> Iterator[str]:
    """Each damage to weights: how often the figures of the GGUF, of its endpoint, and of the checkpoint find it."""
    kinds = {"checkpoint": "merged_", "GGUF": "q8_0_", "endpoint": "endpoint_"}
    rows = []
    for name in dict.fromkeys(name for result in results for name in result["damaged"]):
        found = [result["damaged"][name] for result in results if name in result["damaged"]]
        counts = [f"{sum(is_found(each, prefix) for each in found)} of {len(found)}" for prefix in kinds.values()]
        causes = Counter(figures["cause"].split(":")[-1].strip() for figures in found if figures["cause"])
        rows.append([name, *counts, causes.most_common(1)[0][0] if causes else ""])
    if rows:
        yield "## Damaged weights, found by the limits alone"
        yield table(["damage", *kinds, "what the endpoint is most often found to be"], rows)


def is_found(figures: dict[str, Any], prefix: str) -> bool:
    gates = [gate.name for gate in GATES if gate.name.startswith(prefix) and gate.name in figures]
    return any(name in figures["failed"] for name in gates)


def other_formats(results: list[Result]) -> Iterator[str]:
    rows = []
    for name in OTHER_FORMATS:
        kl = [result["clean"][f"{name}_mean_kl"] for result in results if f"{name}_mean_kl" in result["clean"]]
        top1 = [result["clean"][f"{name}_top1_agreement"] for result in results if f"{name}_mean_kl" in result["clean"]]
        if kl:
            rows.append([name, str(len(kl)), f"{min(kl):.3g} to {max(kl):.3g}", f"{min(top1):.3g} to {max(top1):.3g}"])
    if rows:
        yield "## Other formats, on clean runs"
        yield table(["format", "runs", "mean KL", "top-1"], rows)


def named(results: list[Result]) -> Iterator[str]:
    """Every damage of the tests: in how many runs it failed first at the right gate with its cause in the words."""
    found: dict[str, list[bool]] = {}
    for result in results:
        for case in result["named"]:
            found.setdefault(case["damage"], []).append(case["named"])
    if not found:
        return
    right = sum(all(each) for each in found.values())
    yield "## Damages whose cause has to be named"
    yield f"{right} of {len(found)} kinds failed, with the right cause named, in every run that they were done to."
    yield table(["damage", "named"], [[name, f"{sum(each)} of {len(each)}"] for name, each in sorted(found.items())])


def runs(results: list[Result]) -> Iterator[str]:
    yield "## The runs"
    rows = [
        [
            str(result["index"]),
            result["settings"]["kind"].removesuffix("Config"),
            result["settings"]["dtype"],
            str(result["settings"]["width"]),
            ", ".join(f"{key}: {value}" for key, value in result["settings"]["recipe"].items()) or "as it comes",
            ", ".join(result["settings"]["formats"]),
        ]
        for result in results
    ]
    yield table(["seed", "architecture", "dtype", "width", "recipe", "formats"], rows)


def table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
