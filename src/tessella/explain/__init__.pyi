from .explainer import explain as explain
from .explainer import open_subject as open_subject
from .explanation import Explanation as Explanation
from .explanation import FailedExplanation as FailedExplanation
from .maps import AttributionMap as AttributionMap
from .page import write_page as write_page
from .subject import PreparedImage as PreparedImage
from .subject import Subject as Subject
