"""How many trials fit on the nodes of a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from hpo_ray.clusters.nodes import Node, Request, fits, lacking, nodes_of

BOX = Node("a", {"CPU": 8, "GPU": 4}, {"ray.io/accelerator-type": "A100"})
SMALL = Node("b", {"CPU": 2})
OLD = Node("c", {"CPU": 8, "GPU": 2}, {"ray.io/accelerator-type": "V100"})


def gpus(share: float, cpu: float = 1.0) -> Request:
    return Request([{"CPU": cpu, "GPU": share}])


@pytest.mark.parametrize(
    ("nodes", "request_", "expected"),
    [
        ([SMALL], Request([{"CPU": 1}]), 2),
        ([SMALL, SMALL], Request([{"CPU": 3}]), 0),  # four cores in all, and never three at one place
        ([BOX, SMALL], Request([{"CPU": 3}]), 2),
        ([BOX], gpus(1), 4),
        ([BOX], gpus(1, cpu=3), 2),
        ([BOX, OLD], gpus(2), 3),
        ([BOX], gpus(0.5, cpu=0), 8),
        ([BOX], gpus(0.3333, cpu=0), 12),
        ([BOX], gpus(0.4, cpu=0), 8),  # two on each GPU, and a fifth of each unused
        ([BOX], gpus(0.5), 8),
        ([BOX, OLD], Request([{"GPU": 1}], labels={"ray.io/accelerator-type": ("A100",)}), 4),
        ([BOX, OLD], Request([{"GPU": 1}], labels={"ray.io/accelerator-type": ("A100", "V100")}), 6),
        ([BOX, OLD], Request([{"GPU": 1}], labels={"ray.io/accelerator-type": ("H100",)}), 0),
        ([BOX, OLD], Request([{"GPU": 1}] * 3), 2),  # the second has one process here and two there
        ([BOX, OLD], Request([{"GPU": 1}] * 3, "STRICT_PACK"), 1),
        ([BOX, OLD], Request([{"GPU": 1}] * 2, "STRICT_SPREAD"), 2),
        ([BOX], Request([{"GPU": 1}] * 2, "STRICT_SPREAD"), 0),
        ([BOX, SMALL], Request([{"CPU": 1, "GPU": 1}, {"CPU": 2}, {"CPU": 2}]), 2),
        ([], Request([{"CPU": 1}]), 0),
        ([SMALL], Request([{}]), 7),
        ([BOX], Request([{"memory": 1}]), 0),
    ],
)
def test_fits(nodes: list[Node], request_: Request, expected: int) -> None:
    assert fits(nodes, request_, most=7 if not request_.bundles[0] else 100) == expected


def test_most_bounds_the_count() -> None:
    assert fits([Node("a", {"CPU": 1e9})], Request([{"CPU": 1}]), most=50) == 50


@pytest.mark.parametrize(
    ("nodes", "request_", "message"),
    [
        ([SMALL, OLD], gpus(4), "no node has 4 GPUs, the largest has 2; lower resources.gpu to 2 or less"),
        ([SMALL], gpus(1), "no node has 1 GPUs, the largest has 0; use resources=cpu"),
        (
            [SMALL, OLD],
            Request([{"GPU": 1}], labels={"ray.io/accelerator-type": ("A100", "H100")}),
            "no node has the label ray.io/accelerator-type=A100 or H100; the nodes have ray.io/accelerator-type=V100",
        ),
        (
            [SMALL],
            Request([{"CPU": 1}], labels={"zone": ("x",)}),
            "no node has the label zone=x; the nodes have none of these labels",
        ),
        (
            [SMALL, SMALL],
            Request([{"CPU": 2}] * 3),
            "the 2 nodes have 4 CPUs together, which is not enough for one trial",
        ),
    ],
)
def test_what_is_lacking(nodes: list[Node], request_: Request, message: str) -> None:
    assert fits(nodes, request_) == 0
    assert lacking(nodes, request_) == message


def test_nodes_are_those_that_are_alive() -> None:
    listed: list[dict[str, Any]] = [
        {"NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": {"CPU": 2.0}, "Labels": {"zone": "x"}},
        {"NodeManagerAddress": "10.0.0.2", "Alive": False, "Resources": {}, "Labels": {}},
        {"NodeManagerAddress": "10.0.0.3", "Alive": True, "Resources": {"CPU": 1.0}},
    ]
    assert nodes_of(listed) == [Node("10.0.0.1", {"CPU": 2.0}, {"zone": "x"}), Node("10.0.0.3", {"CPU": 1.0})]


def test_a_request_in_words() -> None:
    assert str(Request([{"CPU": 1, "GPU": 0.5}])) == "1 CPU, 0.5 GPU"
    assert str(Request([{"GPU": 1}] * 2, labels={"zone": ("x", "y")})) == "2 times 1 GPU on nodes with zone=x or y"
