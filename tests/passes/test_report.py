import json
import math

from shave.passes.compare import Difference
from shave.passes.report import PassReport, Report
from tests.passes.examples import net_program, relus


def test_entries_know_every_name_of_the_node() -> None:
    program = net_program()
    report = Report()
    report.applied(relus(program)[1], "done")
    report.skipped(program.inputs[0], "an input")
    report.skipped(next(node for node in program.graph.nodes if node.op == "get_attr"), "shared")
    report.skipped("a thing", "no node")
    relu, given, weight, thing = report.entries
    assert (relu.verdict, relu.node, relu.op, relu.text) == ("applied", "relu_1", "aten.relu", "done")
    assert relu.names == ("relu_1", "second.relu")
    assert (given.op, given.names) == ("input", ("x",))
    assert (weight.op, weight.names) == ("weight", ("first_conv_weight", "first.conv.weight"))
    assert (thing.names, thing.op) == (("a thing",), "")


def test_json_is_json_even_for_infinite_figures() -> None:
    report = Report()
    report.applied("a", "b")
    report.skipped("c", "d")
    drift = {"y": Difference(0.0, 0.0, math.inf, 1.0, None, 1.0)}
    done = PassReport("p", "p{x=1}", True, tuple(report.entries), {"m": 0.5}, drift, {"apply": 0.1})
    data = json.loads(json.dumps(done.to_json(), allow_nan=False))
    assert data["drift"]["y"]["sqnr_db"] == "inf"
    assert [entry["verdict"] for entry in data["entries"]] == ["applied", "skipped"]
    assert (data["name"], data["text"], data["changed"], data["metrics"]) == ("p", "p{x=1}", True, {"m": 0.5})
    assert str(done) == "p{x=1}: 1 applied, 1 skipped, changed"
    assert ([entry.node for entry in done.applied], [entry.node for entry in done.skipped]) == (["a"], ["c"])
