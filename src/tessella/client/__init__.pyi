from .asynchronous import AsyncClient as AsyncClient
from .explanations import ServedExplanation as ServedExplanation
from .explanations import ServedScore as ServedScore
from .protocol import Match as Match
from .protocol import Matches as Matches
from .protocol import ServedCalibration as ServedCalibration
from .protocol import ServerModel as ServerModel
from .synchronous import Client as Client
