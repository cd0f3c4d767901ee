from .findings import Outcome, Verification
from .receipts import Receipt, check_receipt_path, read_receipt, write_receipt
from .replaying import replay
from .verifying import verify

__all__ = [
    "Outcome",
    "Receipt",
    "Verification",
    "check_receipt_path",
    "read_receipt",
    "replay",
    "verify",
    "write_receipt",
]
