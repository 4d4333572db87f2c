#!/usr/bin/python
# SPDX-License-Identifier: LGPL-2.1-only
"""An Ansible module: whole-domain snapshots of Xen guests, and reverts to them, by pyxlsnap."""

from __future__ import annotations

DOCUMENTATION = r"""
module: xen_snapshot
short_description: Take snapshots of Xen guests, and revert guests to them
description:
  - Runs C(pyxlsnap) in a dom0. A snapshot holds the memory of a guest and its disks, as they were
    at the same instant.
  - The module is not idempotent. Each C(create) takes a snapshot, and fails if there is one of that
    name. Each C(revert) destroys the guest as it is now, and restores the snapshot.
  - If Ansible stops the module (C(async), Ctrl-C), pyxlsnap rolls the operation back. A revert that
    has begun to destroy the guest is finished.
requirements:
  - pyxlsnap on the host, and root
options:
  operation:
    description:
      - What to do. C(recover) finishes or rolls back an operation that was killed; without
        I(domain) it does so for every domain.
    type: str
    choices: [create, revert, recover]
    default: create
  domain:
    description: Name, domid or uuid of the domain. For a revert the domain may be off.
    type: str
  cfgfile:
    description:
      - For C(revert) the file that the create wrote (C(result.cfgfile)).
      - For C(create) a config file with the disks and paths to use.
    type: path
  name:
    description: Name of the new snapshot. By default the snapshot is named after the time.
    type: str
  live:
    description: Let the domain run while its memory is saved.
    type: bool
    default: false
  max_downtime:
    description: Refuse a snapshot that is expected to suspend the domain for more seconds.
    type: float
  max_rate:
    description: With I(live), write the memory at this rate at most, in MiB a second.
    type: float
  running:
    description: Run the domain after a revert, even if it was paused in the snapshot.
    type: bool
    default: false
  paused:
    description: Leave the domain paused after a revert, even if it ran in the snapshot.
    type: bool
    default: false
  force:
    description: Do a revert that cannot be shown to be safe (exit status 5).
    type: bool
    default: false
  keep_current:
    description: Before a revert, take a snapshot of the domain as it is now.
    type: bool
    default: false
  monitor:
    description: Start the process that acts on the guest's own reboot, power-off or crash.
    type: bool
    default: true
  executable:
    description: The command, if it is not in PATH.
    type: path
    default: pyxlsnap
attributes:
  check_mode:
    support: full
    description:
      - The dry run. Everything is checked, nothing is changed, RV(result) is the plan, and the task
        fails as the real one would. A C(recover) is skipped.
"""

EXAMPLES = r"""
- name: Take a live snapshot
  xen_snapshot:
    domain: web1
    name: before-upgrade
    live: true
  register: taken

- name: Revert to the snapshot
  xen_snapshot:
    operation: revert
    domain: web1
    cfgfile: "{{ taken.result.cfgfile }}"
"""

RETURN = r"""
result:
  description: The result of the command, or the plan in check mode, as in the JSON of the command.
  type: dict
  returned: success
error:
  description: Why the command failed, as in its JSON; C(error.class) is the class.
  type: dict
  returned: failure
exit_code:
  description: The exit status of the command, as pyxlsnap(1) lists them.
  type: int
  returned: always
finish:
  description: The command that a person must run (exit status 4).
  type: str
  returned: failure
"""

import json  # noqa: E402 - Ansible wants its documentation first
from typing import Any  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

OPTIONS = {
    "operation": {"choices": ["create", "revert", "recover"], "default": "create"},
    "domain": {"type": "str"},
    "cfgfile": {"type": "path"},
    "name": {"type": "str"},
    "live": {"type": "bool", "default": False},
    "max_downtime": {"type": "float"},
    "max_rate": {"type": "float"},
    "running": {"type": "bool", "default": False},
    "paused": {"type": "bool", "default": False},
    "force": {"type": "bool", "default": False},
    "keep_current": {"type": "bool", "default": False},
    "monitor": {"type": "bool", "default": True},
    "executable": {"type": "path", "default": "pyxlsnap"},
}
#: the options of the module that each operation has, but for domain, cfgfile and monitor
_OF_OPERATION = {
    "create": ("name", "live", "max_downtime", "max_rate"),
    "revert": ("running", "paused", "force", "keep_current"),
    "recover": (),
}
_PLACES = ["/usr/local/sbin", "/usr/local/bin", "/opt/pyxlsnap/bin"]


def words(parameters: dict[str, Any], check: bool) -> list[str]:
    """The command line of an operation, without the command itself.

    :param check: the dry run.
    """
    operation = parameters["operation"]
    found = ["--json", f"snapshot-{operation}"]
    for option in _OF_OPERATION[operation]:
        value = parameters[option]
        dashed = "--" + option.replace("_", "-")
        if value is True:
            found.append(dashed)
        elif value is not False and value is not None:
            found.append(f"{dashed}={value}")
    if operation != "recover":
        found += ["--no-monitor"] * (not parameters["monitor"]) + ["--dry-run"] * check
    given = [parameters["domain"], parameters["cfgfile"] if operation != "recover" else None]
    return [*found, "--", *(word for word in given if word is not None)]


def misplaced(parameters: dict[str, Any]) -> list[str]:
    """The options that were given, but belong to another operation."""
    operation = parameters["operation"]
    others = {o for options in _OF_OPERATION.values() for o in options}
    others -= set(_OF_OPERATION[operation])
    found = [o for o in sorted(others) if parameters[o] not in (None, False)]
    return found + ["cfgfile"] * (operation == "recover" and parameters["cfgfile"] is not None)


def document(out: str) -> dict[str, Any] | None:
    """The JSON document of the command; ``None`` if it wrote none."""
    try:
        found = json.loads(out)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "exit_code" in found else None


def main() -> None:
    """Run the operation, and give its result to Ansible."""
    module = AnsibleModule(
        argument_spec=OPTIONS,
        required_if=[
            ("operation", "create", ["domain"]),
            ("operation", "revert", ["domain", "cfgfile"]),
        ],
        mutually_exclusive=[("running", "paused")],
        supports_check_mode=True,
    )
    parameters = module.params
    if others := misplaced(parameters):
        module.fail_json(msg=f"{parameters['operation']} has no option {', '.join(others)}")
    if module.check_mode and parameters["operation"] == "recover":
        module.exit_json(changed=False, skipped=True, msg="a recovery has no dry run")
    command = module.get_bin_path(parameters["executable"], required=True, opt_dirs=_PLACES)
    rc, out, err = module.run_command([command, *words(parameters, module.check_mode)])
    said = document(out)
    if said is None:
        module.fail_json(msg=f"{command} ended with status {rc}: {err.strip()}", exit_code=rc)
        return  # (fail_json does not come back)
    if rc:
        _fail(module, said, rc)
    for warning in said["result"].get("warnings", ()):
        module.warn(warning)
    # A recovery that found nothing to do has no lines.
    changed = parameters["operation"] != "recover" or bool(said["result"]["lines"])
    module.exit_json(changed=changed, exit_code=rc, result=said["result"])


def _fail(module: AnsibleModule, said: dict[str, Any], rc: int) -> None:
    error = said["error"]
    message = error["message"]
    if rc == 5:
        message += " (here: force: true)"
    finish = error.get("finish", "")
    if finish:
        message += f"; to finish: {finish}"
    module.fail_json(msg=message, exit_code=rc, error=error, finish=finish, changed=rc == 4)


if __name__ == "__main__":
    main()
