from .asynchronous import AsyncClient as AsyncClient
from .protocol import Match as Match
from .protocol import Matches as Matches
from .protocol import ServerModel as ServerModel
from .synchronous import Client as Client
