import shutil
def test_try(publish, merged, hub):
    done = publish("merged.lora", "you/merged", "--dry-run")
    open("/tmp/log/pub_dry.txt", "w").write(done.out)
    done = publish("merged.lora", "you/merged")
    for name, content in hub.files("you/merged").items():
        open("/tmp/log/pub_" + name, "wb").write(content)
    shutil.rmtree("/tmp/log/pub_merged.lora", ignore_errors=True)
    shutil.copytree(merged, "/tmp/log/pub_merged.lora")
