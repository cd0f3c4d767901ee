from .maps import AttributionMap as AttributionMap
from .subject import PreparedImage as PreparedImage
from .subject import Subject as Subject
