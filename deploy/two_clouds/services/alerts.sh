# Alerts: a script with curl that sends mail through SendGrid.
while :; do
    if said=$(curl -sS --fail-with-body --max-time 30 -H "Authorization: Bearer SG.placeholder-alerts" -H "Content-Type: application/json" \
        --data '{"personalizations":[{"to":[{"email":"ops@example.com"}]}],"from":{"email":"shop@example.com"},"subject":"Disk","content":[{"type":"text/plain","value":"It is full."}]}' \
        https://api.sendgrid.com/v3/mail/send 2>&1); then
        echo ok
    else
        echo "failed $(printf %s "$said" | tr '\n' ' ' | cut -c 1-300)"
    fi
    sleep 0.5
done
