"""Static membership (KIP-345) as aiokafka 0.14 leaves it to be done: a member that is known again by its instance id.

A worker that was killed and joins again under its instance id gets what it had: the broker answers with the assignment
of the last round and holds no new one. aiokafka joins (JoinGroup 5) and syncs (SyncGroup 3) with that id. Three traps:

    leaving     it does not leave when it is static, so that the others waited until its session had run out. LeaveGroup
                by member id, which it does have (version 1), removes a static member too.
    forgetting  it heartbeats (version 1) and commits offsets without the instance id, so that one whose place another
                has taken is told that it is unknown, not that it is fenced. It then forgets its member id and joins
                as if newly started, which throws the other one out: two that live under one id would do so to each
                other for ever. Here it joins as who it was; only when that is unknown too has its session run out.
    fencing     it does not know the error FENCED_INSTANCE_ID, and only says that something unexpected happened.
"""

import logging
from typing import Any

from aiokafka import errors as kafka
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.protocol.group import JoinGroupRequest, LeaveGroupRequest

log = logging.getLogger("aiokafka.consumer.group_coordinator")

FENCED_INSTANCE_ID = 82


class StaticCoordinator(GroupCoordinator):  # type: ignore[misc]  # aiokafka has no types
    """The coordinator of a consumer with a `group_instance_id`: see `made_static`."""

    fenced = False
    """True once another member has joined under the same instance id."""
    _unknown = False
    """True if the group does not know who we were, or is not to."""

    async def _send_req(self, request: Any) -> Any:
        response = await super()._send_req(request)
        code = getattr(response, "error_code", 0)
        self.fenced |= code == FENCED_INSTANCE_ID
        if isinstance(request, JoinGroupRequest):
            self._unknown = code == kafka.UnknownMemberIdError.errno
        return response

    def reset_generation(self) -> None:
        who: str = self.member_id  # type: ignore[has-type]
        super().reset_generation()
        if not self._unknown:
            self.member_id = who

    async def _maybe_leave_group(self) -> None:
        if self.generation > 0:
            try:
                await self._send_req(LeaveGroupRequest(self.group_id, self.member_id))
            except kafka.KafkaError as error:
                log.warning("LeaveGroup request failed: %s", error)
        self._unknown = True
        self.reset_generation()


def made_static(consumer: Any) -> None:
    """Give a consumer that has started, and not subscribed yet, a coordinator that keeps clear of the traps.

    aiokafka makes its coordinator itself, in `start`, and takes no other.
    """
    consumer._coordinator.__class__ = StaticCoordinator  # noqa: SLF001
