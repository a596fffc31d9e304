"""A service that calls Google's APIs through google-api-python-client, whose key travels in the query."""

from googleapiclient.discovery import build

youtube = build("youtube", "v3", developerKey="AIza-placeholder", static_discovery=True)
print(youtube.search().list(q="claviger", part="snippet", maxResults=2).execute())
