import sys; sys.path.insert(0,'docs')
from pathlib import Path
import check_report as c, json
from PIL import Image
r=Path(sys.argv[1])
for p in c.take_pictures(r, Path(sys.argv[2])):
    Image.open(p).save(str(p).replace('.webp','.png'))
