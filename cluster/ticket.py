"""What a worker must find before it begins: the driver's folders, and the driver's package versions."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..common import OlivineError, demand, package_versions, read_json, write_json

VARIABLE = "OLIVINE_TICKET"
FILE = "ticket.json"


@dataclass(frozen=True)
class Ticket:
    """Made by the driver, checked by every worker.

    Attributes:
        paths: folders that must be there.
        versions: of the packages that the output's bytes depend on.
        proof: a file that the driver wrote into the shared folder, and its content: a folder of the same name on
            another disk does not have it.
    """

    paths: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    proof: tuple[str, str] | None = None

    @classmethod
    def issue(
        cls, paths: Iterable[Path], packages: Iterable[str], folder: Path | None = None, name: str = FILE
    ) -> Ticket:
        """A ticket, with its proof in ``folder``, in a file of this name."""
        ticket = cls(tuple(str(path.absolute()) for path in paths), package_versions(packages))
        if folder is None:
            return ticket
        proof = (str((folder / name).absolute()), secrets.token_hex(8))
        write_json(proof[0], {"paths": ticket.paths, "versions": ticket.versions, "proof": proof[1]})
        return replace(ticket, proof=proof)

    @classmethod
    def of_driver(cls, paths: Iterable[Path], packages: Iterable[str], folder: Path | None) -> Ticket:
        """A ticket of one driver of several, to be withdrawn when it ends."""
        return cls.issue(paths, packages, folder, f"ticket-{secrets.token_hex(4)}.json")

    def withdraw(self) -> None:
        """Remove the proof."""
        if self.proof is not None:
            Path(self.proof[0]).unlink(missing_ok=True)

    def check(self) -> None:
        """Raise where this process could not do the work.

        Raises:
            OlivineError: names the machine and what it does not see, or the package that differs.
        """
        host = socket.gethostname()
        hidden = [path for path in self.paths if not os.path.exists(path)]
        if self.proof is not None and not hidden:
            try:
                seen = demand(read_json(self.proof[0]), {"proof": str}, self.proof[0])["proof"]
            except OlivineError:
                seen = None
            if seen != self.proof[1]:
                hidden = [os.path.dirname(self.proof[0])]
        if hidden:
            raise OlivineError(
                f"worker on {host} does not see this folder of the driver's",
                where=hidden[0],
                remedy="use a folder that all machines share under the same path",
            )
        here = package_versions(self.versions)
        other = [
            f"{name} {here[name]} (here {version})" for name, version in self.versions.items() if here[name] != version
        ]
        if other:
            raise OlivineError(
                f"worker on {host} has other packages: {', '.join(other)}",
                remedy="install the same versions on every machine, for example from one shared environment",
            )


def check_environment() -> None:
    """Check the ticket that a job's submission left in the environment, where it did.

    Raises:
        OlivineError: as :meth:`Ticket.check`.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    if not os.path.exists(path):
        Ticket((os.path.dirname(path),)).check()
    again = "submit the job again"
    plain = demand(read_json(path, again), {"paths": [str], "versions": {str: str}}, path, again)
    Ticket(tuple(plain["paths"]), plain["versions"]).check()
