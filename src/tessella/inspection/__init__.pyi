from .clean_list import write_clean_list as write_clean_list
from .findings import Finding as Finding
from .inspector import inspect as inspect
from .inspector import write_findings as write_findings
from .kinds import KINDS as KINDS
from .outcome import Inspection as Inspection
from .page import write_page as write_page
from .settings import InspectionSettings as InspectionSettings
