"""``shave groups``."""

from xml.etree import ElementTree

from tests.api.conftest import call


def test_table_json_and_picture(inside):
    outcome = call("groups net.onnx --svg groups.svg --json")
    assert outcome.code == 0, outcome.err
    free = [each for each in outcome.data if not each["reason"]]
    stay = [each for each in outcome.data if each["reason"]]
    assert free
    assert [each["reason"] for each in stay] == ["the program gives it as an output"]
    assert all(each["made_by"] and each["read_by"] for each in free)
    tree = ElementTree.parse(inside / "groups.svg")
    titles = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}title")]
    assert [title.partition(":")[0] for title in titles] == [each["name"].partition(":")[0] for each in outcome.data]
    words = {"".join(element.itertext()) for element in tree.iter("{http://www.w3.org/2000/svg}text")}
    assert all(name in words for each in outcome.data for name in each["made_by"])
    table = call("groups net.onnx")
    assert table.code == 0
    assert all(each["name"] in table.out for each in outcome.data)
    assert "the program gives it as an output" in table.out
