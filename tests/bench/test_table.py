import json
from functools import partial

import pandas as pd
import pytest
import torch
from safetensors.torch import save

from star.bench import first_updates, gradient, influence
from star.bench.table import older_rows, refuse_less, whole, write
from star.common.errors import UserError

COLUMNS = ["task", "weights", "value", "config_hash"]


def test_a_table_from_before_machines_were_recorded_keeps_its_rows_and_gets_the_column(tmp_path):
    file = tmp_path / "gradient.csv"
    file.write_text("task,weights,value,config_hash\nocr,initial,1,0123\ngeneval,initial,2,0123\n")
    write(pd.DataFrame([("ocr", "initial", 3.0, "0123", "a CPU")], columns=[*COLUMNS, "machine"]), file, "gradient")
    assert older_rows(file, COLUMNS, "gradient").to_numpy().tolist() == [
        ["geneval", "initial", "2", "0123", ""],
        ["ocr", "initial", "3", "0123", "a CPU"],
    ]


@pytest.mark.parametrize("head", ["task,weights,config_hash", "machine,task,weights,value,config_hash"])
def test_a_table_of_something_else_is_refused(tmp_path, head):
    file = tmp_path / "gradient.csv"
    file.write_text(head + "\n")
    with pytest.raises(UserError, match="is no table of star bench gradient"):
        older_rows(file, COLUMNS, "gradient")


DRAWS = pd.DataFrame(1.5, index=range(3), columns=[*influence.OF_A_DRAW, "commit"]).assign(commit="c").to_csv(index=False)
PARTS = {
    "gradient": (gradient._check, save({"a": torch.ones(2, 9)}, {"steps": "0,1"})),
    "no gradient": (gradient._check, save({}, {"steps": "0,1"})),
    "influence": (partial(influence._check, draws=3), DRAWS.encode()),
    "first_updates": (first_updates._check, json.dumps({"rewards": [0.5, -1], "commit": "c"}).encode()),
}
OTHERS = {
    "gradient": [save({"a": torch.ones(1)})],
    "influence": [DRAWS.replace("1.5", "x", 1).encode(), DRAWS.replace("reward", "rewards").encode()],
    "first_updates": [b"[]", b'{"rewards": 1, "commit": "c"}', b'{"rewards": ["1"], "commit": "c"}', b'{"rewards": [1]}'],
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_that_are_damaged_are_made_again(tmp_path, name, capsys):
    """Emptied, of zeros, cut at any place, or of something else."""
    check, data = PARTS[name]
    file = tmp_path / "part"
    assert not whole(file, check)
    file.write_bytes(data)
    assert whole(file, check) and file.read_bytes() == data and not capsys.readouterr().err
    for damaged in (bytes(len(data)), *(data[:size] for size in range(0, len(data), 7)), data[:-1], *OTHERS.get(name, [])):
        file.write_bytes(damaged)
        assert not whole(file, check) and not file.exists() and (tmp_path / "part.damaged").read_bytes() == damaged
        assert capsys.readouterr().err.startswith(f"star: caution: {file} is damaged (")


@pytest.mark.parametrize("cell", ["2.0", ""])
def test_a_count_that_a_spreadsheet_changed_is_told(tmp_path, cell):
    file = tmp_path / "gradient.csv"
    columns = [*COLUMNS, "epochs", "machine"]
    pd.DataFrame([dict.fromkeys(columns, "x") | {"epochs": cell}]).to_csv(file, index=False)
    with pytest.raises(UserError, match=f"gradient.csv, row 1: epochs is {cell}, no whole number; put one in, or"):
        refuse_less(file, columns, "gradient", "x", "epochs", 12)
