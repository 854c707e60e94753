"""The command line has the options that README and scripts use, and its `--help` loads nothing heavy."""

import inspect
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.__main__ import COMMANDS, app, build_command

SHARED = {"--workspace", "--cores", "--gpu", "--gpu-limit", "--timeout-hours"}
OPTIONS = {
    "reproduce": {"targets", "--force", "--rev", "--experiment", *SHARED},
    "refresh": {"targets", "--branch", "--push", "--remote", "--git-remote", "--allow-dirty", *SHARED},
    "sweep": {"grid", "--target", "--jobs", "--prefix", "--rev", "--resume", *SHARED},
    "serve": {"--port", "--workspace"},
}
HELP = """
import sys
sys.argv = ["pipelines", "--help"]
from pipelines.__main__ import COMMANDS, main
try:
    main()
except SystemExit:
    pass
assert not {"prefect", "dvc", "torch"} & set(sys.modules)
"""


def test_help_names_the_commands_without_prefect(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HELP], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f" {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_parameter_of_a_flow_is_an_option_with_a_help_text(name: str) -> None:
    command = build_command(name)
    assert {option.opts[0] for option in command.params} == OPTIONS[name]
    assert all(option.help for option in command.params if option.name != "help"), inspect.getdoc(command)


def test_a_fault_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").touch()
    for words, message in {
        ("sweep", "a", "--workspace", str(tmp_path)): "error: 'a' is no setting to vary",
        ("refresh", "--workspace", str(tmp_path / "none")): f"error: {tmp_path / 'none'} has no dvc.yaml",
    }.items():
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == 1
        assert result.output.startswith(message)
        assert result.output.count("\n") == 1


class _Refuses(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(401)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("answers", "cure"),
    [(True, "export its user and password, PREFECT_API_AUTH_STRING"), (False, "start it, or unset PREFECT_API_URL")],
    ids=["no password", "no server"],
)
def test_a_server_that_cannot_be_used_is_one_line(tmp_path: Path, root: Path, answers: bool, cure: str) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").touch()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refuses) as stand:
        address = f"http://127.0.0.1:{stand.server_port}/api"
        environment = {**os.environ, "PYTHONPATH": str(root), "PREFECT_API_URL": address}
        if answers:
            threading.Thread(target=stand.serve_forever, daemon=True).start()
        else:
            stand.server_close()
        command = [sys.executable, "-m", "pipelines", "reproduce"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        if answers:
            stand.shutdown()
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: the Prefect server {address} cannot be used: ")
    assert cure in line
