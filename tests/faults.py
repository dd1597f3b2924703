"""The fault plan: what is done to runs, under the ids of a published list, and what came of it.

With GLM_DIST_FAULT_RESULTS=docs the tests write `docs/results/faults.json` and the table in
`docs/reliability.md`. Each row stands for the session with the most trials, and says its commit.
"""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from glm_dist.metrics.provenance import provenance

FOLDER = os.environ.get("GLM_DIST_FAULT_RESULTS")


PLAN = yaml.safe_load((Path(__file__).parent / "fault_plan.yaml").read_text())


def command(fault: dict[str, Any]) -> str:
    """What runs a row's trials, or why nothing does."""
    if "missing" in fault:
        return f"not built: {fault['missing']}"
    return f"`pytest {'-m slow ' if fault.get('slow') else ''}{fault['test']}`"


class FaultRecord:
    """Collects what came of the plan's rows in a session of tests."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}

    def add(self, plan_id: str, trials: int, passed: int, **counts: Any) -> None:
        """Add trials of a row; several calls add up, of `counts` the latest stay."""
        assert plan_id in PLAN, plan_id
        row = self._rows.setdefault(plan_id, {"trials": 0, "passed": 0})
        row["trials"] += trials
        row["passed"] += passed
        row.update(counts)

    def write(self) -> None:
        """Bring results and table up to date, where a folder is named."""
        if not FOLDER or not self._rows:
            return
        path = Path(FOLDER) / "results" / "faults.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        results = json.loads(path.read_text()) if path.exists() else {}
        origin = provenance()
        hardware = origin["hardware"]
        for plan_id, row in self._rows.items():
            where = {key: origin[key] for key in ("commit", "date")}
            machine = f"{hardware['cores']} cores of {hardware['processor']}"
            if row["trials"] >= results.get(plan_id, row)["trials"]:
                results[plan_id] = {**row, **where, "machine": machine}
        results = {plan_id: results[plan_id] for plan_id in PLAN if plan_id in results}
        path.write_text(json.dumps(results, indent=1) + "\n")
        write_table(Path(FOLDER) / "reliability.md", results)


NO_COUNTS = {"trials", "passed", "commit", "date", "machine"}
TABLE_START = "<!-- table: written by the tests -->"


def write_table(page: Path, results: dict[str, Any]) -> None:
    """Replace all of the page after the mark."""
    head = page.read_text().split(TABLE_START)[0] if page.exists() else ""
    lines = [
        "| id | what is done | what must come of it | trials | passed | counts | command |",
        "|---|---|---|---|---|---|---|",
    ]
    for plan_id, fault in PLAN.items():
        row = results.get(plan_id, {})
        cells = [
            plan_id,
            fault["what"],
            fault["expected"],
            str(row.get("trials", "not run")),
            str(row.get("passed", "")),
            ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in row.items() if k not in NO_COUNTS),
            command(fault),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    page.write_text(f"{head}{TABLE_START}\n\n" + "\n".join(lines) + "\n")
