from .notebook import explorer_widget as explorer_widget
from .server import Explorer as Explorer
from .server import explore as explore
