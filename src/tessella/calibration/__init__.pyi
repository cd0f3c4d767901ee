from .calibration import Calibration as Calibration
from .fitting import CalibrationSettings as CalibrationSettings
from .storage import read_calibration as read_calibration
from .storage import write_calibration as write_calibration
