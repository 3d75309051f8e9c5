# cuBLASLt where toolkits and python packages put it

for d in /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib \
    $(python3 -c 'import site; print(*site.getsitepackages())' 2>/dev/null \
      | tr ' ' '\n' | sed 's,$,/nvidia/*/lib,')
do
    [ -d "$d" ] && LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$d
done
export LD_LIBRARY_PATH
