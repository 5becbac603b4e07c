from .server import Explorer as Explorer
from .server import explore as explore
