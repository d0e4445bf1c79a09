"""Why a model does not run in a lane."""


class LaneRefusedError(Exception):
    """This model cannot run in this lane; the message says why, to the user."""
