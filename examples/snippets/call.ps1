# Calls a service every second. PowerShell 7 or later.
while ($true) {
    $token = Get-Content -Raw /var/run/idtoken/token | ConvertTo-SecureString -AsPlainText -Force
    Invoke-RestMethod -Uri https://billing-x.run.app/prices -Authentication Bearer -Token $token
    Start-Sleep -Seconds 1
}
