"""The command line of the benchmark."""

from __future__ import annotations

import pytest

from bench.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "named"), [(["--only", "upwards"], "no row upwards"), (["--gateways", "vde"], "vde cannot")]
)
def test_an_unknown_row_or_gateway_is_named_with_those_there_are(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert named in capsys.readouterr().err
