import sys

from two_clouds.main import main

sys.exit(main())
