from .figures import contact_sheet as contact_sheet
from .sheet import Panel as Panel
from .sheet import write_sheet as write_sheet
