"""A slice to rent, checked before anything is created: its name, type, zone, project, and what follows from its type.

    v5e-16   as `nuwaxl_jax.cost.topologies` and the README's tables name it
    v5litepod-16   as the cloud names it; both are understood

Hosts, sizes and runtime images are those of cloud.google.com/tpu/docs (read in 2026): v5e and v6e have up to 8 chips on
one host and 4 a host in larger slices, the others 4 a host.
"""

from __future__ import annotations

import dataclasses
import math
import re

from nuwaxl_jax.cost import topologies


class UsageError(ValueError):
    """A mistake on the command line: one line that names the flag and the mend; exit status 2."""


# generation -> (accelerator type of gcloud with the number of chips or cores, runtime image)
_CLOUD = {
    "v3": ("v3-{cores}", "tpu-ubuntu2204-base"),
    "v4": ("v4-{cores}", "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod-{chips}", "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p-{cores}", "v2-alpha-tpuv5"),
    "v6e": ("v6e-{chips}", "v2-alpha-tpuv6e"),
    "tpu7x": ("tpu7x-{cores}", ""),  # rented through GKE alone
}
_ONE_HOST = {"v5e": 8, "v6e": 8}  # chips that still fit on one host
_CHIPS_A_HOST = 4
_FORMS = {
    "name": (r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", "lower-case letters, digits and hyphens, a letter first, 40 at most"),
    "zone": (r"[a-z]+-[a-z]+[0-9]+-[a-z]", "such as us-west4-a; gcloud compute tpus locations list has them all"),
    "project": (r"([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]", "its id, such as my-project-123456, not its title"),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """What is rented.

    Attributes:
      name: of the TPU VM and of the queued resource.
      type: our name, v5e-16.
      zone, project: where, on whose bill.
      queued: asked for through the queue of queued resources, else created at once or not at all.
      spot, reserved: cheaper and taken back at any time; out of a reservation.
      runtime: image of the TPU VMs; '' = the generation's.
      network, subnetwork, service_account: of the VMs; '' = the project's default.
      internal_ips: VMs without public addresses, reached from inside their network.
    """

    name: str
    type: str
    zone: str
    project: str
    queued: bool = False
    spot: bool = False
    reserved: bool = False
    runtime: str = ""
    network: str = ""
    subnetwork: str = ""
    service_account: str = ""
    internal_ips: bool = False

    def __post_init__(self):
        """Raises UsageError for the first field that cannot be."""
        for field in _FORMS:
            check(field, getattr(self, field))
        if self.spot and self.reserved:
            raise UsageError("--spot and --reserved exclude each other; leave one out")
        _of_type(self.type)

    @property
    def generation(self) -> str:
        """v5e of v5e-16."""
        return _of_type(self.type)[0]

    @property
    def chips(self) -> int:
        """How many."""
        return _of_type(self.type)[1]

    @property
    def devices(self) -> int:
        """What jax.device_count() must say on every worker."""
        return self.chips * topologies.CHIPS[self.generation].devices

    @property
    def hosts(self) -> int:
        """TPU VMs, workers 0 to hosts - 1."""
        return 1 if self.chips <= _ONE_HOST.get(self.generation, 0) else max(1, self.chips // _CHIPS_A_HOST)

    @property
    def accelerator_type(self) -> str:
        """gcloud's name, v5litepod-16 of v5e-16."""
        cores = self.chips * topologies.CHIPS[self.generation].cores
        return _CLOUD[self.generation][0].format(chips=self.chips, cores=cores)

    @property
    def image(self) -> str:
        """Runtime version of the VMs."""
        return self.runtime or _CLOUD[self.generation][1]

    def must_be_rented_as_vms(self) -> None:
        """Raises UsageError for a generation that gcloud does not rent as TPU VMs."""
        if not _CLOUD[self.generation][1]:
            raise UsageError(f"--type: {self.type} is rented through GKE alone; use the subcommand xpk")


def check(field: str, value: str) -> None:
    """Raises UsageError where a name, zone or project cannot be one."""
    form, example = _FORMS[field]
    if not value:
        raise UsageError(f"--{field} is missing; give {example}")
    if not re.fullmatch(form, value):
        raise UsageError(f"--{field}: {value!r} cannot be one; give {example}")


def known() -> str:
    """Types, for a message."""
    examples = ("v3-8", "v4-8", "v5e-16", "v5p-64", "v6e-64")
    return f"{', '.join(examples)} and other sizes; through xpk alone tpu7x-8"


def _of_type(name: str) -> tuple[str, int]:
    """(generation, chips) of v5e-16 or v5litepod-16."""
    if not name:
        raise UsageError(f"--type is missing; known: {known()}")
    if ":" in name:
        raise UsageError(f"--type: {name!r} is a topology; give the size that is rented: {known()}")
    try:
        generation, shape = topologies.resolve(name)
    except topologies.TopologyError as error:
        said = str(error).removeprefix("--topology: ")
        line = said if "no usual slice" in said else f"{name!r} is unknown; known: {known()}"
        raise UsageError(f"--type: {re.sub(r'give its shape .*?, or ', 'known: ', line)}") from error
    return generation, math.prod(int(side) for side in shape.split("x"))
