"""Images that cannot be read: what to do, and which ones there were."""

from __future__ import annotations

from typing import Literal

from hpff.errors import UserError

Policy = Literal["stop", "skip"]


class BrokenImages:
    """Stop at the first broken image, or leave such images out and remember them.

    Attributes:
        policy: "stop" or "skip".
        found: name to reason of each image that was left out, in the order they were found.
    """

    def __init__(self, policy: Policy = "stop") -> None:
        self.policy = policy
        self.found: dict[str, str] = {}

    def add(self, where: str, reason: str) -> None:
        """Take in a broken image.

        Args:
            where: its name.
            reason: what is wrong with it.

        Raises:
            UserError: the policy is "stop"; the message names the image.
        """
        if self.policy == "stop":
            raise UserError(
                f"{where}: {reason}; mend or delete it, or leave such images out with "
                "broken_images=skip"
            )
        self.found[where] = reason
