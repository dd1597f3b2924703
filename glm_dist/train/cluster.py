"""What a launch asks of its Ray cluster: who stays, what room there is, who sees what.

Beside `launch.py` the only file of the package that knows ray; it knows nothing of training.
"""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from glm_dist.engine.remote import open_location
from glm_dist.errors import GlmDistError, LaunchError
from glm_dist.train.settings import WorkerSettings

ROW_TASK_CPUS = 1
ANSWER_SECONDS = 10.0
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a rank that died is noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # the launcher looks for nodes that leave itself
}
"""Environment of Ray Train; what the user has set there wins."""


def staying_nodes() -> list[dict[str, Any]]:
    """Ray's entries of the nodes that are alive and not about to leave."""
    leaving = ray._private.state.state.get_draining_nodes() or {}
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def answering_nodes() -> list[dict[str, Any]]:
    """Those of them that run a task at once; a node that died is listed as alive for a while."""
    here = ray.get_runtime_context().get_node_id()  # answers: this runs there
    nodes = staying_nodes()
    probe = ray.remote(num_cpus=0, max_retries=0)(_missing_files)
    others = [node["NodeID"] for node in nodes if node["NodeID"] != here]
    answers = {node: on_node(node, probe).remote([]) for node in others}
    if answers:
        ray.wait(list(answers.values()), num_returns=len(answers), timeout=ANSWER_SECONDS)
    good = {here, *(node for node, answer in answers.items() if _is_good(answer))}
    return [node for node in nodes if node["NodeID"] in good]


def on_node(node_id: str, task: Any) -> Any:
    """A task that runs on this node or not at all."""
    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return task.options(scheduling_strategy=where)


def _is_good(answer: ray.ObjectRef[Any]) -> bool:
    try:
        ray.get(answer, timeout=0)
    except ray.exceptions.RayError:
        return False
    return True


def room_for_workers(workers: WorkerSettings, nodes: list[dict[str, Any]]) -> int:
    """Workers that the nodes have room for, one task that builds rows apart."""
    cpus = [node["Resources"].get("CPU", 0) for node in nodes]
    room = sum(int(count // workers.cpus_per_worker) for count in cpus)
    while room and room * workers.cpus_per_worker + ROW_TASK_CPUS > sum(cpus):
        room -= 1
    if workers.use_gpu:
        room = min(room, int(sum(node["Resources"].get("GPU", 0) for node in nodes)))
    return room


def check_visibility(files: list[str]) -> None:
    """Refuse files that a node of the cluster does not see, by the node's name.

    Args:
        files: paths, or URLs.

    Raises:
        LaunchError: naming each host and folder.
    """
    probe = ray.remote(num_cpus=0)(_missing_files)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers = [on_node(node["NodeID"], probe).remote(files) for node in nodes]
    problems = [
        f"host {node['NodeManagerHostname']} does not see {missing.rpartition('/')[0]}"
        for node, missing_files in zip(nodes, ray.get(answers), strict=True)
        for missing in missing_files
    ]
    if problems:
        raise LaunchError(
            "\n".join(problems)
            + "\nput GLM_DIST_HOME on storage that every node mounts at the same path, and give "
            "every node what it needs to read checkpoints.folder"
        )


def _missing_files(paths: list[str]) -> list[str]:
    return [path for path in paths if not _is_visible(path)]


def _is_visible(path: str) -> bool:
    try:
        return open_location(path).exists()
    except (OSError, GlmDistError):
        return False
