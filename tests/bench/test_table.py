import pandas as pd
import pytest

from star.bench.table import older_rows, write
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
