from .reading import packaged_recipes as packaged_recipes
from .reading import parse_recipe as parse_recipe
from .reading import read_recipe as read_recipe
from .recipe import Recipe as Recipe
from .run_recipe import run as run
