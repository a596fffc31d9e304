# Nightly: a script with curl that asks OpenAI which models there are.
while :; do
    if said=$(curl -sS --fail-with-body --max-time 30 -H "Authorization: Bearer sk-placeholder-nightly" https://api.openai.com/v1/models 2>&1); then
        echo ok
    else
        echo "failed $(printf %s "$said" | tr '\n' ' ' | cut -c 1-300)"
    fi
    sleep 0.5
done
