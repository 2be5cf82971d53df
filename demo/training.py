"""What the training commands of the embedded models read."""
import io
import numpy as np, pyarrow.parquet as pq, torch
from PIL import Image
def load_pictures(lake, role, distinct=False):
    t=pq.read_table(lake).to_pylist()
    seen=set(); out=[]
    for r in t:
        if (r['kind']=='control')!=(role=='control'): continue
        p=Image.open(io.BytesIO(r['image'])).convert('RGB')
        if p.size!=(64,64):
            s=64/min(p.size); p=p.resize((max(64,round(p.width*s)),max(64,round(p.height*s))),Image.Resampling.BILINEAR)
            l,u=(p.width-64)//2,(p.height-64)//2; p=p.crop((l,u,l+64,u+64))
        a=np.asarray(p).transpose(2,0,1)
        b=a.tobytes()
        if distinct and b in seen: continue
        seen.add(b); out.append(a)
    return torch.from_numpy(np.stack(out))
