"""An Ansible callback that writes the result of each task as a line of JSON."""

import json
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: ansible_results
type: stdout
short_description: the results as lines of JSON
description: the results as lines of JSON
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Called by Ansible."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "ansible_results"

    def _tell(self, result: Any, outcome: str) -> None:
        task, host = result._task.get_name(), result._host.get_name()
        values = json.loads(self._dump_results(result._result))
        line = {"task": task, "host": host, "outcome": outcome, "result": values}
        self._display.display(json.dumps(line))

    def v2_runner_on_ok(self, result: Any) -> None:
        """A task has worked."""
        self._tell(result, "ok")

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A task has failed."""
        self._tell(result, "failed")

    def v2_runner_on_skipped(self, result: Any) -> None:
        """A task was skipped."""
        self._tell(result, "skipped")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """The host of a task does not answer."""
        self._tell(result, "unreachable")
