from .reading import parse_recipe as parse_recipe
from .reading import read_recipe as read_recipe
from .reading import shipped_recipes as shipped_recipes
from .recipe import Recipe as Recipe
from .run_recipe import run as run
