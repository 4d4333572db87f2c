"""What somebody may do between a create and a revert: the list of it, and what is right then.

Whatever was there before the destroy must be found before it. So for each condition the revert ends
with the status that is right for it, and never with 4. The unit tests run the list on real files,
images and devices (tests/unit/revert/test_rehearsal.py), the lab on a real Xen
(tests/lab/test_rehearsal.py). A new condition is one entry in a module of this folder.
"""

from tests.rehearsal import domains, images, processes, snapshots, toolstack, volumes
from tests.rehearsal.condition import Condition

CONDITIONS: tuple[Condition, ...] = (
    *images.CONDITIONS,
    *snapshots.CONDITIONS,
    *volumes.CONDITIONS,
    *domains.CONDITIONS,
    *processes.CONDITIONS,
    *toolstack.CONDITIONS,
)
