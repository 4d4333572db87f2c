"""In dom0: in the place of a guest's agent, which this lab's guests do not have.

usage: stand_in_agent.py SOCKET DOMAIN. It answers in qemu-ga's protocol and prints, for each
command, a line of JSON with the command and what the domain was doing then, as `xl list` has it.
"""

import json
import os
import socket
import subprocess
import sys


def state(domain: str) -> str:
    listing = subprocess.run(["xl", "list", domain], capture_output=True, text=True).stdout
    return listing.splitlines()[-1].split()[-2] if listing else ""


def answer(request: dict[str, object], domain: str) -> dict[str, object]:
    command = request["execute"]
    if command == "guest-sync":
        return {"return": request["arguments"]["id"]}  # type: ignore[index]
    print(json.dumps({"command": command, "state": state(domain)}), flush=True)
    return {"return": {} if command == "guest-set-time" else 1}


def main() -> None:
    path, domain = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        os.write(1, b"ready\n")
        while True:
            with listening.accept()[0] as client:
                client.sendall(b'{"return": "to somebody who has gone"}\n')
                for line in client.makefile("rb"):
                    client.sendall(json.dumps(answer(json.loads(line), domain)).encode() + b"\n")


if __name__ == "__main__":
    main()
