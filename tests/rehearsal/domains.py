"""What may become of the domain, and what other domains may do."""

from tests.rehearsal.condition import Condition

CONDITIONS = (
    Condition(name="the domain paused", do=("xl pause {domain}",), status=0),
    Condition(name="the domain off", do=("xl destroy {domain}",), status=0),
    Condition(
        name="the domain renamed", do=("xl rename {domain} renamed",), status=0, off_xen_only=True
    ),
    Condition(
        name="the domain renamed, and its old name used",
        do=("xl rename {domain} renamed",),
        status=3,
        says="'{domain}' is called 'renamed' now: use this name",
        undo=("xl rename renamed {domain}",),
        domain="{domain}",
        lab=True,
    ),
    Condition(
        name="the name taken by another domain",
        do=("xl destroy {domain}", "xl rename {other} {domain}"),
        status=3,
        says="holds {domain}, which the restored domain needs",
        undo=("xl rename {domain} {other}",),
    ),
    Condition(
        name="a disk used by another domain",
        do=("xl block-attach {other} format=qcow2,vdev=xvdh,access=rw,target={external}",),
        status=3,
        says="domain {other} uses {external}, too: detach it there",
        undo=("xl block-detach {other} xvdh",),
        off_xen_only=True,  # (libxl's hotplug script would refuse it there)
    ),
    Condition(
        name="a disk attached",
        do=("xl block-attach {domain} format=qcow2,vdev=xvdh,access=rw,target={internal_bottom}",),
        status=5,
        says="disks were added, removed or changed since: xvdh",
        off_xen_only=True,  # (tests/lab/test_reverts.py does it with a guest that uses the disk)
    ),
    Condition(
        name="the memory of a domain that is off taken by another domain",
        do=("xl destroy {domain}", "xl mem-set {other} 1024"),
        status=3,
        says="of memory and Xen has 0 MiB: shut down another domain",
        undo=("xl mem-set {other} 1",),
        off_xen_only=True,  # (the lab has no domain that large)
    ),
    Condition(
        name="the bridge gone",
        do=("mv {bridge} {spare}",),
        status=3,
        says="which does not exist: create the bridge",
        undo=("mv {spare} {bridge}",),
        off_xen_only=True,  # (the lab's guests have no network)
    ),
    Condition(
        name="the device model gone",
        do=("mv {device_model} {spare}",),
        status=3,
        says="the device model {device_model}, which libxl would start, is missing",
        undo=("mv {spare} {device_model}",),
        off_xen_only=True,  # (tests/lab/test_host_needs.py does it)
    ),
)
