import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;

/** Calls a service every second. Java 11 or later runs this file as it is: java Call.java */
class Call {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        while (true) {
            // For each call: it is renewed twice an hour.
            String token = Files.readString(Path.of("/var/run/idtoken/token"));
            HttpRequest request = HttpRequest.newBuilder(URI.create("https://billing-x.run.app/prices"))
                    .header("Authorization", "Bearer " + token).build();
            System.out.println(client.send(request, BodyHandlers.ofString()).body());
            Thread.sleep(1000);
        }
    }
}
