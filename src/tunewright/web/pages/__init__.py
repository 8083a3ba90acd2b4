"""The control center: pages over the same jobs and runs that the API answers about.

Each page is a module with its routes and what they show; `frame` has what all share. A page changes nothing itself: its
forms are sent to the API as JSON by `static/center.js`. Text from rows, names and logs is escaped by the templates, and
no page holds a script or a style of its own.
"""
