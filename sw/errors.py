"""The errors that a user of the compiler sees."""


class WarploomError(Exception):
    """Root of all errors that name what is wrong, where, and what to do."""


class CompileError(WarploomError):
    """A network or a file that cannot be compiled; names the node, what it is and what would be accepted."""


class DeviceError(WarploomError):
    """A simulated or real accelerator that does not answer as it should."""
