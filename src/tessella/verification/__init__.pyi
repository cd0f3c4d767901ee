from .findings import Finding, Verification
from .receipts import Receipt, check_receipt_path, read_receipt, write_receipt
from .replaying import replay
from .verifying import verify

__all__ = [
    "Finding",
    "Receipt",
    "Verification",
    "check_receipt_path",
    "read_receipt",
    "replay",
    "verify",
    "write_receipt",
]
