"""usage: python node_drill.py NODES CPUS GPUS LOSE_WHEN JOB [options]

Run a job on a Ray of several nodes on this machine: a head without work and NODES nodes of CPUS logical CPUs and GPUS
logical GPUs, for which a CPU stands in, on these nodes alone. Once the file pattern LOSE_WHEN matches (empty: never),
one node is killed and another one joins.
"""

import importlib.util
import json
import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main(nodes: int, cpus: int, gpus: int, lose_when: str, job: str, arguments: list[str]) -> None:
    import ray
    from ray.cluster_utils import Cluster

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port, "object_store_memory": 80_000_000}
    # Exit hooks could not be set from the thread that adds a node; whoever runs this ends what it has started.
    cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
    size: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "object_store_memory": 150_000_000}
    if gpus:
        size["env_vars"] = {"ADAMATCH_DEVICE": "cpu"}
    added = [cluster.add_node(**size) for _ in range(nodes)]
    cluster.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    ray.init(address=cluster.address, logging_level=logging.WARNING)
    lost: list[float] = []
    loser = threading.Thread(target=_lose, args=(cluster, added[-1], size, lose_when, lost), daemon=True)
    if lose_when:
        loser.start()
    path = Path(__file__).resolve().parents[1] / "jobs" / f"{job}.py"
    spec = importlib.util.spec_from_file_location(job, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    answer = module.main(arguments)
    ended = time.monotonic()
    assert not lose_when or lost, "the job ended before the node was lost"
    if lose_when:
        loser.join()
    dead = [node["NodeID"] for node in ray.nodes() if not node["Alive"]]
    after = round(ended - lost[0], 1) if lost else 0.0
    print(json.dumps({**answer, "nodes": len(ray.nodes()), "dead": len(dead), "after": after}))
    ray.shutdown()
    cluster.shutdown()


def _lose(cluster: Any, node: Any, size: dict[str, Any], lose_when: str, lost: list[float]) -> None:
    """Kill the node at its moment, add another, and note when it was; returns once the cluster knows."""
    import ray

    while not any(Path("/").glob(lose_when.lstrip("/"))):
        time.sleep(0.02)
    lost.append(time.monotonic())
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(**size)
    while all(node["Alive"] for node in ray.nodes()):
        time.sleep(0.1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5], sys.argv[6:])
