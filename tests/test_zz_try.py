import sys; sys.path.insert(0,'/work/main/tests')
def test_it(command, tiny_flags, tmp_path):
  o=command("sweep", *tiny_flags("prompt_sweep", MODEL_DIR=str(tmp_path/'s'), TRAIN_STEPS=6, EVAL_PERIOD=3, SAVE_PERIOD=3, LOG_PERIOD=2, SEEDS=[0,1], LEARNING_RATES=[0.1,0.3]))
  print(o.status,o.err,o.result)
  import subprocess; print(subprocess.run(['find',str(tmp_path/'s'),'-type','f'],capture_output=True,text=True).stdout)
  import shutil; shutil.copy(tmp_path/'s'/'sweep.png','/tmp/g/sweep.png')
  assert o.status==0
