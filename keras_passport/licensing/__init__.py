"""A key for every licensee of one network, so that a leak names its holder.

F(W, p) = Wᵀκ leaves keys much freedom: whatever lies in the null space of Wᵀ
changes nothing, and a per cent of γ and β hardly does. Both hold marks, and
each has its limit (`Licensor`).
"""

from keras_passport.lazy import exported

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "Ledger": "ledger",
        "Licence": "issuing",
        "Licensor": "issuing",
        "Trace": "tracing",
        "capacity": "codes",
        "issue_licence": "issuing",
        "trace": "tracing",
    },
)
